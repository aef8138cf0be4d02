"""The packed model: manifest, model card, golden images, TFLite metadata, signature.

May import what `edgeall.optimize` may import, and no other package of it.
"""
