"""Make the bucket that compose's installation keeps its objects in; one that is there is kept.

``python make_bucket.py NAME``; endpoint and keys come as AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, …
"""

from __future__ import annotations

import sys

import boto3
from botocore.exceptions import ClientError

MINE = ("BucketAlreadyOwnedByYou", "BucketAlreadyExists")


def main(name: str) -> None:
    """Create the bucket; whether one that exists is ours, the read that follows says."""
    client = boto3.client("s3")
    try:
        client.create_bucket(Bucket=name)
    except ClientError as e:
        if e.response["Error"]["Code"] not in MINE:
            raise
    client.list_objects_v2(Bucket=name, MaxKeys=1)


if __name__ == "__main__":
    main(sys.argv[1])
