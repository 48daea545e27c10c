"""Models to merge: named tensors that can be read in parts.

sources.py           what such a model is
checkpoint.py        one from a folder, a file or the Hub, or with an adapter
fetching.py          from the Hub
weights.py           the weight files of a folder
safetensors_file.py  safetensors headers and reads, defensively
pickle_file.py       PyTorch's files, of which only tensors are unpickled
quantised.py         quantised weights, recognised and refused
lora.py              adapters applied tensor by tensor while reading
tokenizer.py         a model's tokenizer
chat_template.py     chat templates: built in, or the most frequent
layout.py            which layer a tensor's name speaks of
names.py             one model's names for another's tensors
"""
