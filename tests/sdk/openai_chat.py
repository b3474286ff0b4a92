"""Talks to a running control plane with the unmodified OpenAI SDK.

    python3 -m venv /tmp/sdk && /tmp/sdk/bin/pip install openai
    OPENAI_BASE_URL=http://127.0.0.1:PORT/v1 OPENAI_API_KEY=KEY /tmp/sdk/bin/python tests/sdk/openai_chat.py [AGENT]

Expects an agent (default main) that repeats the text, as builtin/echo does. Exits 1 at the first thing that is not as
the SDK's users expect.
"""

import sys
import uuid

import openai

agent = sys.argv[1] if len(sys.argv) > 1 else "main"
client = openai.OpenAI(max_retries=0)


def ask(text, **more):
    messages = [{"role": "user", "content": text}]
    return client.chat.completions.create(**{"model": agent, "messages": messages, **more})


def refused(kind, status, code, call):
    try:
        call()
    except kind as error:
        assert (error.status_code, error.code) == (status, code), (error.status_code, error.code)
        return
    raise AssertionError(f"{kind.__name__} expected")


assert agent in [model.id for model in client.models.list()]
assert client.models.retrieve(agent).object == "model"

plain = ask("hello plain", temperature=0.2, max_tokens=100, user="someone")
assert "hello plain" in plain.choices[0].message.content
assert plain.choices[0].finish_reason == "stop"
assert plain.usage.total_tokens == plain.usage.prompt_tokens + plain.usage.completion_tokens

chunks = list(ask("hello streamed", stream=True, stream_options={"include_usage": True}))
assert chunks[0].choices[0].delta.role == "assistant"
text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
assert "hello streamed" in text, text
assert chunks[-1].usage is not None and chunks[-1].choices == []

parts = [{"type": "text", "text": "hello parts"}]
assert "hello parts" in ask("", messages=[{"role": "user", "content": parts}]).choices[0].message.content

with client.chat.completions.stream(model=agent, messages=[{"role": "user", "content": "hello helper"}]) as stream:
    assert "hello helper" in stream.get_final_completion().choices[0].message.content

key = {"Idempotency-Key": str(uuid.uuid4())}
assert ask("hello once", extra_headers=key).id == ask("hello once", extra_headers=key).id
refused(openai.ConflictError, 409, "idempotency_conflict", lambda: ask("hello twice", extra_headers=key))
refused(openai.NotFoundError, 404, "model_not_found", lambda: ask("hello", model="no-such-agent"))
refused(openai.BadRequestError, 400, None, lambda: ask("hello", n=2))
wrong = openai.OpenAI(api_key="wrong", max_retries=0)
refused(openai.AuthenticationError, 401, "invalid_api_key", wrong.models.list)

first = client.chat.completions.with_raw_response.create(model=agent, messages=[{"role": "user", "content": "hello"}])
session = first.headers["x-hermes-session-id"]
again = client.chat.completions.with_raw_response.create(
    model=agent,
    messages=[{"role": "user", "content": "hello again"}],
    extra_headers={"X-Hermes-Session-Id": session},
)
assert again.headers["x-hermes-session-id"] == session
print("ok")
