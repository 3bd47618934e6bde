"""Parts that families share: decoders, rotary positions, vision transformers."""
