"""The application: a page and its server on this machine.  The only package that imports gradio."""
