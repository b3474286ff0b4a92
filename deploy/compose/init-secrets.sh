#!/usr/bin/env bash
# Makes the secrets of compose.yaml, once: what is already there stays. Compose mounts these files with the owner and
# mode they have here, and the containers run as other users, so the files are readable and the directory is closed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# 256 random bits in base64url, 43 characters.
random() { head -c 32 /dev/urandom | base64 -w 0 | tr '+/' '-_' | tr -d '='; }

mkdir -p secrets
chmod 0700 secrets
umask 022
[[ -s secrets/postgres-password ]] || random >secrets/postgres-password
[[ -s secrets/operator-token ]] || printf 'hermes.v1.operator.%s' "$(random)" >secrets/operator-token
[[ -s secrets/database-url ]] ||
  printf 'postgres://hermes:%s@postgres:5432/hermes' "$(cat secrets/postgres-password)" >secrets/database-url
echo "secrets are in $PWD/secrets; start with: docker compose up --build --detach"
