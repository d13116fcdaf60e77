"""One reader for each decoding library; `vjepa_hub.data.video` chooses among them."""
