"""The passport of an export or a push: what the run was, the hash of each file, and whether that holds."""
