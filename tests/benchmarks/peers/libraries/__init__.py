"""One file a library. Each has two functions, which are called in the library's own environment.

`build(method, size)` gives the training steps of a method on images in memory. `train(method, size, folder, output,
steps, stamp)` trains from a folder of JPEGs, in the way that the library documents; it calls `stamp()` after each step.
Precision, attention, optimiser and shares of masked patches are the library's own. What can be the same is the same:
the encoder's size, the batch, clipping at norm 1, two processes that decode, and the number of threads.
"""
