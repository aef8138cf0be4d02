"""The app in the browser: a folder of static files that runs a packed model, and the server for trying it.

``static/`` holds the page. Its JavaScript does what `edge_runtime` does, in the same order and under the same names.
"""
