"""How to choose the numbers of a quantized matrix. Methods know values and scales, never bytes."""
