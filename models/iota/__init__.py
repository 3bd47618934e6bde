"""The recipe of iota, the small vision-language model that comes with pocketvlm: draw, ask, train, evaluate."""
