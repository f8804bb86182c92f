"""Running a model: tokens in, tokens out. Tokenizer, sampler, sequences, batch loop."""
