"""`make cluster`: a real Kubernetes on this machine, with an S3 server beside it."""
