"""One module per kind of model that was trained to read documents; `presets` finds them all.

Prompts are those with which the models were trained, as far as their authors document them; each module says where.
"""
