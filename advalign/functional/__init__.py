"""Pure tensor functions: tensors and floats in, tensors out; no module, no configuration, no device choice, no I/O.

Nothing here averages over a batch: the weights of `weights` do, once for a whole update. Index t is about token t.
"""
