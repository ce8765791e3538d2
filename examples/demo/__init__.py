"""The demo: a small real model, finetuned from a real S3 server on this machine."""
