"""The recipe of iota, the small vision-language model in the box: draw, ask, train, evaluate."""
