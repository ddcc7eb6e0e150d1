"""What a gateway's journal says, summed up."""
