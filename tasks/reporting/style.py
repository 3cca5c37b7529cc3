"""The style sheet of the report: light, dark where the reader's system asks for it, and fit for print."""

STYLE = """
:root {
  --page: #f6f7f9; --card: #ffffff; --ink: #1c2330; --muted: #5d6778; --rule: #e2e6ec; --tint: #f1f5fb;
  --teacher: #2f6db5; --warmup: #c96a12; --student: #14806a; --other: #5d6778; --better: #14806a; --worse: #b3261e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12161d; --card: #1a2029; --ink: #e4e8ef; --muted: #9aa5b6; --rule: #2c3442; --tint: #202a38;
    --teacher: #7fb2ef; --warmup: #eda45c; --student: #52c7a9; --other: #9aa5b6; --better: #52c7a9; --worse: #f2897f;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink); font: 15px/1.55 system-ui, "Segoe UI", Roboto, Helvetica,
  Arial, sans-serif; -webkit-text-size-adjust: 100%;
}
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 27px; line-height: 1.25; margin: 0 0 4px; letter-spacing: -0.01em; }
h2 { font-size: 19px; margin: 44px 0 2px; letter-spacing: -0.005em; }
h3 { font-size: 15px; margin: 22px 0 10px; }
p { margin: 0 0 12px; max-width: 90ch; }
.muted, small { color: var(--muted); font-size: 13px; }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 18px 20px; }
.verdict { font-size: 17px; line-height: 1.5; margin: 20px 0 18px; border-left: 4px solid var(--student); }
.verdict p { margin: 0; max-width: none; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(230px, 1fr)); gap: 14px; margin-bottom: 18px; }
.tile .label { color: var(--muted); font-size: 13px; }
.tile .big { font-size: 25px; font-weight: 650; letter-spacing: -0.01em; font-variant-numeric: tabular-nums; }
.tile .arrow { color: var(--muted); font-weight: 400; }
.better { color: var(--better); } .worse { color: var(--worse); }
.scroll { overflow-x: auto; padding: 6px 20px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 9px 12px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule); }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
th { color: var(--muted); font-weight: 550; font-size: 13px; vertical-align: bottom; }
.words { text-align: left; }
tr:last-child td { border-bottom: 0; }
tr.chosen td { font-weight: 650; }
.dot { display: inline-block; width: 9px; height: 9px; border-radius: 50%; margin-right: 8px; }
.dot.teacher { background: var(--teacher); } .dot.warmup { background: var(--warmup); }
.dot.student { background: var(--student); } .dot.other { background: var(--other); }
.pair { display: grid; gap: 14px; align-items: start; }
.pair { grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 14px; }
figure { margin: 0; padding: 14px 14px 8px; }
figcaption { font-weight: 600; font-size: 14px; line-height: 1.4; margin-bottom: 8px; }
figcaption small { font-weight: 400; margin-left: 4px; }
figcaption div { font-weight: 400; font-size: 12.5px; color: var(--muted); }
.key { margin-right: 12px; white-space: nowrap; } .key .dot { margin-right: 5px; width: 8px; height: 8px; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { fill: var(--muted); font-size: 11px; font-variant-numeric: tabular-nums; }
svg .value { text-anchor: end; } svg .axis { text-anchor: middle; }
svg .grid { stroke: var(--rule); stroke-width: 1; } svg .tick { stroke: var(--muted); stroke-width: 1; }
svg .best { stroke: var(--muted); stroke-width: 1; stroke-dasharray: 3 3; }
svg .line { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
svg .line.teacher { stroke: var(--teacher); } svg .line.warmup { stroke: var(--warmup); }
svg .line.student { stroke: var(--student); } svg .line.other { stroke: var(--other); }
svg circle.teacher { fill: var(--teacher); } svg circle.warmup { fill: var(--warmup); }
svg circle.student { fill: var(--student); } svg circle.other { fill: var(--other); }
.example { margin-top: 14px; padding: 0; overflow: hidden; }
.example header { padding: 14px 20px; background: var(--tint); border-bottom: 1px solid var(--rule); }
.example header .ask { font-weight: 600; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; }
.given { margin-top: 8px; padding-left: 12px; border-left: 3px solid var(--rule); color: var(--muted); }
.answers { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); }
.answers > div { padding: 12px 16px 14px; border-right: 1px solid var(--rule); min-width: 0; }
.answers > div:last-child { border-right: 0; }
.answers h4 { margin: 0 0 6px; font-size: 13px; font-weight: 600; color: var(--muted); }
.answers .text, .given, .ask { font-size: 14px; line-height: 1.5; max-height: 320px; overflow-y: auto; }
.answers .text + .text { margin-top: 8px; padding-top: 8px; border-top: 1px dashed var(--rule); }
details { margin-top: 8px; font-size: 13px; color: var(--muted); }
summary { cursor: pointer; }
details .text { margin-top: 6px; font-size: 13px; }
.empty { font-style: italic; color: var(--muted); }
footer { margin-top: 44px; border-top: 1px solid var(--rule); padding-top: 16px; }
@media (max-width: 860px) {
  .answers { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .answers > div:nth-child(2n) { border-right: 0; }
  .answers > div:nth-child(n + 3) { border-top: 1px solid var(--rule); }
}
@media (max-width: 520px) {
  main { padding: 24px 14px 40px; }
  .answers { grid-template-columns: minmax(0, 1fr); }
  .answers > div { border-right: 0; } .answers > div + div { border-top: 1px solid var(--rule); }
}
@media print { body { background: none; } .card { break-inside: avoid; } .text { max-height: none; } }
"""
