"""The room of attention: softmax attention and its gates."""
