"""Load a model, its vision encoder and a context onto the devices that have room for them."""
