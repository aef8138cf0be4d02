"""Adaptation of a packed classifier to another laboratory, on the device: the last layer learns from a few images."""

from __future__ import annotations
