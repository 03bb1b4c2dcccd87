"""How text, pictures and sounds become network inputs, for both training and serving."""
