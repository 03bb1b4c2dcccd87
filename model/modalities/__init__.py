"""How text, pictures and sounds become what a network takes, for training and serving alike."""
