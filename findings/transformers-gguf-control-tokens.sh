#!/usr/bin/env bash
# transformers cuts the control tokens of DeepSeek's GGUF files into bytes.
#
# Version: transformers 5.24.0, torch 2.13.0, gguf 0.19.0.
#
# Expected: AutoTokenizer.from_pretrained(folder, gguf_file=...) encodes a token that the file marks as CONTROL to its
# id.
#
# Seen: in a byte-level vocabulary ("gpt2") that holds only for tokens written in the 256 letters of the byte alphabet.
# DeepSeek's <｜User｜> has fullwidth bars, <｜end▁of▁sentence｜> low blocks, too. The loader takes such a token for a
# mistake of the converter and does not add it. Decoding still works, so a round trip of text does not show it.
#
#   <|im_end|>                 1 token
#   <｜User｜>                   12 tokens
#   <｜end▁of▁sentence｜>        1 token, but a new id behind the file's vocabulary, which no model has learned
#
# Why it matters: chat templates of DeepSeek and of its distilled Qwen and Llama models put these tokens around every
# message. The model then reads bytes that it has never seen there, generation waits for an id that the model does not
# write, and the real end of an answer stays in the text. Take the tokenizer from the original checkpoint, and compare
# ids, not text.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
"${PYTHON:-python3}" -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --no-compile torch==2.13.0 transformers==5.24.0 gguf==0.19.0
HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1 "$dir/venv/bin/python" - "$dir" <<'PYTHON'
import sys
from pathlib import Path

import gguf
import transformers
from tokenizers.pre_tokenizers import ByteLevel

FOLDER = Path(sys.argv[1])
PLAIN, USER, END = "<|im_end|>", "<｜User｜>", "<｜end▁of▁sentence｜>"
letters = sorted(ByteLevel.alphabet())
tokens = [*letters, "ab", PLAIN, USER, END]

# Metadata alone: nothing here loads weights.
writer = gguf.GGUFWriter(FOLDER / "vocabulary.gguf", "qwen2")
writer.add_block_count(1)
writer.add_context_length(512)
writer.add_embedding_length(32)
writer.add_feed_forward_length(64)
writer.add_head_count(2)
writer.add_head_count_kv(2)
writer.add_layer_norm_rms_eps(1e-6)
writer.add_rope_freq_base(10000.0)
writer.add_tokenizer_model("gpt2")
writer.add_tokenizer_pre("deepseek-r1-qwen")
writer.add_token_list(tokens)
writer.add_token_types([gguf.TokenType.NORMAL] * 257 + [gguf.TokenType.CONTROL] * 3)
writer.add_token_merges(["a b"])
writer.add_bos_token_id(tokens.index(PLAIN))
writer.add_eos_token_id(tokens.index(END))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER, gguf_file="vocabulary.gguf")
seen = {}
for token in (PLAIN, USER, END):
    ids = seen[token] = tokenizer.encode(token, add_special_tokens=False)
    decoded = tokenizer.decode([tokens.index(token)], skip_special_tokens=True)
    print(f"{token}: id in the file {tokens.index(token)}, encoded to {ids}, decoded and skipped: {decoded!r}")
print(f"{len(tokens)} tokens in the file, eos_token_id {tokenizer.eos_token_id}")
as_seen = (
    seen[PLAIN] == [tokens.index(PLAIN)]
    and len(seen[USER]) == len(USER.encode())
    and seen[END] == [tokenizer.eos_token_id]
    and tokenizer.eos_token_id >= len(tokens)
)
sys.exit(0 if as_seen else "transformers reads control tokens from GGUF files differently now")
PYTHON
