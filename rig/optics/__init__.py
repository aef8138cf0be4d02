"""The microscope's optics: scale of each objective, scale bars, flat field and white balance."""
