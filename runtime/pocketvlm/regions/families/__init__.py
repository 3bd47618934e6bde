"""One module per kind of model that writes places in a notation of its own; `notations` finds them all.

Questions are those with which the models were trained, as far as their authors document them; each module says where.
"""
