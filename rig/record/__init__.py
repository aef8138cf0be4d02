"""The tamper-evident record of slides, frames, reviews and images: writing, reading, verification and export."""
