"""What text must come through, whatever tokenizer it was."""


def check_survives(tokenizer, text):
    """Encoded and decoded it is the same, whole and piece by piece."""
    ids = tokenizer.encode(text, add_special=False)
    assert tokenizer.decode(ids) == text
    stream = tokenizer.decode_stream()
    parts = [stream.push(i) for i in ids]
    assert "".join(parts) + stream.finish() == text
    assert "\ufffd" not in "".join(parts) or "\ufffd" in text
