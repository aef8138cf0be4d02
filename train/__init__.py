"""The workstation: a folder of labelled images in, a trained and honestly measured Keras model out."""
