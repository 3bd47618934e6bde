#!/usr/bin/env bash
# transformers gives the text after a video of Qwen2.5-VL positions before the end of the video, and the answer others.
#
# Version: transformers 5.24.0 (5.3.0 is the first), torch 2.13.0.
#
# Expected: a token has the same position whether it is evaluated with the prompt or after it, with a cache. The paper
# of M-RoPE (arXiv 2409.12191) lets text continue after the largest position of any axis, as transformers 4 did.
#
# Seen: positions in time of a video rise with its seconds, and soon lie beyond those of rows and columns. Text in the
# same forward pass continues after rows and columns all the same, so it shares positions with frames; what is
# evaluated after it continues after the largest position. The same tokens give other answers with a cache and without:
#
#   frames of 4 x 4 embeddings   position of the 4 tokens after it   of the token after these   scores differ by
#   1 s                          8 to 11                             12                         0.0000
#   30 s                         8 to 11                             63                         2.3
#
# (Scores are log probabilities of a small random model.)
#
# Why it matters: scores of an answer (training, evaluation, speculative decoding) are not those of generating it, and
# nothing says so. Pass `position_ids` of your own where a clip is longer than its frames are large: seconds times
# tokens_per_second (2 in published checkpoints) above the rows or columns of a frame.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
"${PYTHON:-python3}" -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --no-compile torch==2.13.0 transformers==5.24.0
HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1 "$dir/venv/bin/python" - <<'PYTHON'
import torch
import transformers

TEXT, VIDEO, EDGE = 7, 9, 4  # tokens, and embeddings along the edge of a frame
torch.manual_seed(0)
model = transformers.Qwen2_5_VLForConditionalGeneration(
    transformers.Qwen2_5_VLConfig(
        vision_config={
            "depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32,
            "tokens_per_second": 2,
        },
        text_config={
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 2, "vocab_size": 16, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
        },
        image_token_id=8, video_token_id=VIDEO, vision_start_token_id=10, vision_end_token_id=11,
    )
).eval()  # fmt: skip
with torch.no_grad():
    for weight in model.parameters():
        weight.normal_(0, 0.5)


def compare(seconds):
    """Return where the text begins, where the token behind the prompt is, and the largest difference of its scores."""
    grids = seconds  # two frames each
    kinds = [0] * 4 + [2] * grids * EDGE**2 + [0] * 4
    tokens = torch.tensor([[VIDEO if kind else TEXT for kind in kinds]])
    more = {
        "pixel_values_videos": torch.randn(grids * (2 * EDGE) ** 2, 3 * 2 * 14 * 14, generator=torch.manual_seed(1)),
        "video_grid_thw": torch.tensor([[grids, 2 * EDGE, 2 * EDGE]]),
        "second_per_grid_ts": torch.tensor([1.0]),
    }
    both = torch.cat([tokens, torch.tensor([[3]])], dim=1)
    places = [torch.tensor([kinds]), torch.tensor([[*kinds, 0]])]
    asked = {key: value for key, value in more.items() if key != "pixel_values_videos"}
    positions, delta = model.model.get_rope_index(tokens, places[0], **asked)
    with torch.no_grad():
        whole = model(both, mm_token_type_ids=places[1], **more).logits[0, -1].log_softmax(-1)
        prompt = model(tokens, mm_token_type_ids=places[0], **more, use_cache=True)
        cache = getattr(prompt, "past_key_values", None) or prompt.cache
        name = "past_key_values" if "past_key_values" in prompt else "cache"
        after = model(both[:, -1:], **{name: cache}).logits[0, -1].log_softmax(-1)
    return int(positions[0, 0, -4]), len(kinds) + int(delta), float((whole - after).abs().max())


short, long = compare(1), compare(30)
for seconds, (text, following, difference) in ((1, short), (30, long)):
    print(f"{seconds:2} s: text begins at {text}, the next token is at {following}; scores differ by {difference:.4f}")
assert short[2] < 1e-4 and short[1] == short[0] + 4, "a short video is wrong, too"
assert long[0] == short[0] and long[1] > long[0] + 4 and long[2] > 0.1, "transformers behaves differently now"
PYTHON
