"""Examples in the format of keras.io."""
