"""One model on several processes: tensor-parallel and expert-parallel ranks."""
