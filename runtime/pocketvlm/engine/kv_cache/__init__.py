"""The KV cache: what each sequence holds, and which sequence a prompt uses."""
