def page(folder):
    return ""
