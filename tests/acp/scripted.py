"""A program that speaks the Agent Client Protocol over stdin and stdout, or does not, as told.

scripted.py MODE [--loads]    how it starts: well, mute, gone, old, garbage, login, endless
The first word of the last text of a prompt says what it does."""
import json
import os
import sys
import time

MODE = sys.argv[1] if len(sys.argv) > 1 else "well"
LOADS = "--loads" in sys.argv
HERE = os.path.join(os.environ.get("HOME", "."), "kept.json")
SESSIONS = {}
NEXT = [0]


def send(message):
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def update(session, **what):
    send({"method": "session/update", "params": {"sessionId": session, "update": what}})


def say(session, text):
    update(session, sessionUpdate="agent_message_chunk", content={"type": "text", "text": text})


def read():
    line = sys.stdin.readline()
    if not line:
        sys.exit(0)
    return json.loads(line)


def ask(method, params):
    """Asks the client; its answer, whatever else it says meanwhile."""
    NEXT[0] += 1
    send({"id": NEXT[0], "method": method, "params": params})
    while True:
        message = read()
        if message.get("id") == NEXT[0] and "method" not in message:
            return message


def permission(session, call, kinds):
    options = [{"optionId": kind, "name": kind, "kind": kind} for kind in kinds]
    answer = ask("session/request_permission", {"sessionId": session, "toolCall": call, "options": options})
    outcome = answer["result"]["outcome"]
    return outcome.get("optionId", outcome["outcome"])


def note(name):
    with open(name, "a") as file:
        file.write("once\n")


def prompt(session, blocks):
    """Does what the last text says; how it ended."""
    texts = [block["text"] for block in blocks]
    SESSIONS[session] = SESSIONS.get(session, 0) + 1
    if LOADS:
        with open(HERE, "w") as file:
            json.dump(SESSIONS, file)
    word, _, rest = texts[-1].partition(" ")
    if word == "say":
        for part in rest.split("|"):
            say(session, part)
    elif word == "blocks":
        say(session, json.dumps(texts))
    elif word == "session":
        say(session, f"{session} {SESSIONS[session]}")
    elif word == "ask":
        kind, _, command = rest.partition(" ")
        call = {"toolCallId": "c1", "title": f"Do {kind}", "kind": kind, "rawInput": {"command": command}}
        update(session, sessionUpdate="tool_call", status="pending", **call)
        # Of its call it says here what it is called, and no more.
        said = permission(session, {"toolCallId": "c1"}, ["allow_always", "allow_once", "reject_once"])
        update(session, sessionUpdate="tool_call_update", toolCallId="c1", status="completed")
        say(session, f"told: {said}")
    elif word == "always":
        say(session, "told: " + permission(session, {"toolCallId": "c2", "title": "Do it for ever"}, ["allow_always"]))
    elif word == "large":
        call = {"toolCallId": "c3", "title": "Much", "kind": "edit", "rawInput": {"text": "x" * (1 << 20)}}
        say(session, "told: " + permission(session, call, ["allow_once", "reject_once"]))
    elif word == "env":
        say(session, " ".join(sorted(os.environ)))
    elif word == "tell":
        say(session, "it is " + os.environ.get(rest, "?"))
    elif word == "home":
        path = os.path.join(os.environ["HOME"], "mine")
        open(path, "w").write("here")
        say(session, path + " " + os.getcwd())
    elif word == "wait":
        note("waited")
        while True:
            message = read()
            if message.get("method") == "session/cancel":
                note("cancelled")
                return {"stopReason": "cancelled"}
    elif word == "hang":
        note("hung")
        time.sleep(3600)
    elif word == "die":
        print("I cannot go on with", os.environ.get("THE_KEY"), file=sys.stderr)
        sys.exit(3)
    elif word == "line":
        sys.stdout.write("x" * (8 << 20) + "\n")
        sys.stdout.flush()
        time.sleep(3600)
    elif word == "flood":
        while True:
            say(session, "y" * 60000)
    elif word == "calls":
        for number in range(3000):
            update(session, sessionUpdate="tool_call", toolCallId=f"n{number}", title=f"call {number}", kind="read")
        say(session, "fine")
    elif word == "garbage":
        for line in ["hello", "[1]", "{", '{"jsonrpc":"2.0","id":4711,"result":{}}', '{"id":null}', "nul\0l", '{"method":"session/update","params":3}']:
            sys.stdout.write(line + "\n")
        for odd in [{}, {"sessionUpdate": 3}, {"sessionUpdate": "agent_message_chunk"}, {"sessionUpdate": "tool_call"}, {"sessionUpdate": "later"}]:
            send({"method": "session/update", "params": {"sessionId": session, "update": odd}})
        send({"method": "session/update", "params": {"sessionId": "another", "update": {"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": "not mine"}}}})
        say(session, "fine")
    elif word == "stderr":
        sys.stderr.write("e" * (4 << 20))
        say(session, "fine")
    elif word == "requests":
        told = []
        for method, params in [
            ("fs/read_text_file", {"sessionId": session, "path": "/etc/passwd"}),
            ("fs/write_text_file", {"sessionId": session, "path": "/tmp/x", "content": "x"}),
            ("terminal/create", {"sessionId": session, "command": "id"}),
            ("session/request_permission", {"sessionId": "another", "toolCall": {}, "options": []}),
        ]:
            answer = ask(method, params)
            told.append("refused" if "error" in answer else answer["result"]["outcome"]["outcome"])
        say(session, " ".join(told))
    elif word == "mute":
        pass
    elif word == "refuse":
        return {"stopReason": "refusal"}
    elif word == "used":
        say(session, "used")
        return {"stopReason": "end_turn", "usage": {"inputTokens": 12, "outputTokens": 34, "totalTokens": 46}}
    elif word == "error":
        return None
    else:
        say(session, "heard: " + texts[-1])
    return {"stopReason": "end_turn"}


def main():
    if MODE == "gone":
        print("no licence found for", os.environ.get("THE_KEY"), file=sys.stderr)
        sys.exit(1)
    if MODE == "garbage":
        print("Welcome!\nPress any key.", flush=True)
        time.sleep(3600)
    while True:
        message = read()
        method, params, number = message.get("method"), message.get("params") or {}, message.get("id")
        if method == "initialize":
            if MODE == "mute":
                time.sleep(3600)
            if MODE == "endless":
                while True:
                    send({"method": "noise", "params": {"x": "z" * 60000}})
            version = 0 if MODE == "old" else params["protocolVersion"]
            send({"id": number, "result": {"protocolVersion": version, "agentCapabilities": {"loadSession": LOADS}}})
        elif method == "session/new" and MODE == "login":
            send({"id": number, "error": {"code": -32000, "message": "Authentication required"}})
        elif method == "session/new":
            session = os.urandom(8).hex()
            SESSIONS[session] = 0
            send({"id": number, "result": {"sessionId": session}})
        elif method == "session/load":
            try:
                kept = json.load(open(HERE))
            except OSError:
                kept = {}
            session = params["sessionId"]
            if session in kept:
                SESSIONS[session] = kept[session]
                say(session, "what was said before, said again")
                send({"id": number, "result": None})
            else:
                send({"id": number, "error": {"code": -32602, "message": "no such session"}})
        elif method == "session/prompt":
            result = prompt(params["sessionId"], params["prompt"])
            if result is None:
                send({"id": number, "error": {"code": -32603, "message": "the model cannot be reached"}})
            else:
                send({"id": number, "result": result})
        elif number is not None and method:
            send({"id": number, "error": {"code": -32601, "message": "unknown"}})


main()
