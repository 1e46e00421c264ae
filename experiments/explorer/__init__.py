"""A trained model as a page: its decoder runs in the browser, under the mouse.

| file | what |
| --- | --- |
| `opened` | a run's folder: its model, parameters, test images, codes |
| `program` | a decoder as a list of steps that a page can carry |
| `interpreter.js` | what runs those steps in the browser |
| `page` | the page, of `page.html`, `page.css` and `page.js` |
| `server` | the page for a decoder that Python has to run |
"""
