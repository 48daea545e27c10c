"""A merged model's folder.

writer.py        safetensors shards, published at once
output_file.py   files written behind the merge, past the page cache
companions.py    config, tokenizer
card.py          the model card
verification.py  a written model loaded, run and made to generate
"""
