"""Puts a model on a device and runs things there: a Raspberry Pi by ssh, a phone by adb."""
