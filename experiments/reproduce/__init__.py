"""Published and exact numbers beside what this library reaches, row by row.

| file | what |
| --- | --- |
| `rows` | the rows: a command each, what was published, what is expected |
| `runs` | a row's commands, run one after the other, each resumed where it was stopped |
| `report` | the table in words |
"""
