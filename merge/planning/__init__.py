"""From a recipe to a plan, by headers alone.

planner.py           one operation for each output tensor
grouping.py          which tensors of which models make it
modules.py           which tensors the modules of a recipe speak of
contract.py          what a method asks of a recipe
unread.py            what its program says before any tensor is read
output_tokenizer.py  the output's tokenizer
vocabulary.py        rows of embeddings in the order of its tokens
output_config.py     the output's config.json
"""
