"""What families are put together from: decoders, rotary positions, vision transformers."""
