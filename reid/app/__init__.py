"""The application: a page in the browser, served to this machine. No other package imports gradio."""
