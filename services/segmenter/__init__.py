"""The segmenter: parts foreground from background in time and frequency, for any label or none."""
