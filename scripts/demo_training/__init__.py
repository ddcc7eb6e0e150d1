"""What the training of the demo model is made of: the books, the batches, the network and the folder it leaves."""
