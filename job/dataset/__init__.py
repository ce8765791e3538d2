"""Rows: read, converted to chats, checked, rendered, tokenized and masked. No torch, so a CPU can do it before a GPU is asked for."""
