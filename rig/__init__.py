"""The microscope rig: cameras, the quality gate, cells, the record, the loop over them and its page."""
