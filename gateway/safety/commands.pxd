# functions of the hot path, as they are
