"""The style sheet of the report: light and dark, 400 to 1600 pixels wide, on paper."""

from typing import Final

from zhenfa.live.timeline import BACKWARD, FORWARD, PLAIN, WEIGHT

STYLE: Final = f"""
:root {{
  color-scheme: light dark;
  --page: #fff; --ink: #1b2430; --muted: #5b6675; --line: #d8dee7; --soft: #eef1f5; --accent: #2f6fd0; --warn: #b3261e;
  --forward: {FORWARD}; --backward: {BACKWARD}; --weight: {WEIGHT}; --optimizer: {PLAIN["optimizer"]};
  --reduce: {PLAIN["reduce"]}; --receive: {PLAIN["receive"]}; --other: #0f8b8d;
}}
@media screen and (prefers-color-scheme: dark) {{
  :root {{
    --page: #14181f; --ink: #e4e9f0; --muted: #9ba7b6; --line: #323b48; --soft: #222933; --accent: #6ea4f5;
    --warn: #ff8a80; --optimizer: #b9c0ca; --reduce: #b184c6; --receive: #566070; --other: #36b5b7;
  }}
}}
* {{ box-sizing: border-box; }}
body {{
  margin: 0; background: var(--page); color: var(--ink); line-height: 1.5; font-size: 15px;
  font-family: system-ui, "Segoe UI", Roboto, "Noto Sans", "PingFang SC", "Microsoft YaHei", "DejaVu Sans", sans-serif;
}}
main {{ max-width: 1180px; margin: 0 auto; padding: 20px 20px 60px; overflow-wrap: anywhere; }}
h1 {{ font-size: 26px; line-height: 1.25; margin: 8px 0 4px; }}
h2 {{ font-size: 18px; margin: 0 0 10px; padding-bottom: 4px; border-bottom: 1px solid var(--line); }}
h2 small {{ font-size: 13px; font-weight: 400; color: var(--muted); margin-left: 6px; }}
p {{ margin: 4px 0; }}
section {{ margin-top: 32px; }}
ul {{ margin: 4px 0; padding-left: 20px; }}
pre {{ background: var(--soft); padding: 12px; overflow-x: auto; font-size: 13px; border-radius: 6px; }}
summary {{ cursor: pointer; padding: 3px 0; }}
.muted, .note, .caption {{ color: var(--muted); }}
.note {{ font-size: 13px; }}
.caption {{ text-align: center; font-size: 13px; }}
.warn {{ color: var(--warn); }}
.mark {{
  display: inline-block; vertical-align: middle; font-size: 13px; line-height: 1; padding: 5px 8px; border-radius: 5px;
  background: var(--warn); color: var(--page); letter-spacing: .06em;
}}
.tag {{
  font-size: 12px; color: var(--muted); border: 1px solid var(--line); border-radius: 4px;
  padding: 0 5px; margin: 0 2px; white-space: nowrap;
}}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
th {{ text-align: left; font-size: 13px; color: var(--muted); font-weight: 600; }}
th, td {{ padding: 6px 16px 6px 0; vertical-align: top; border-bottom: 1px solid var(--line); }}
th {{ overflow-wrap: normal; }}
td.right {{ white-space: nowrap; }}
td:last-child, th:last-child {{ padding-right: 0; }}
th.right, td.right {{ text-align: right; }}
.bar {{ height: 9px; background: var(--soft); border-radius: 3px; overflow: hidden; margin: 4px 0; min-width: 90px; }}
.bar i {{ display: block; height: 100%; background: var(--accent); }}
.wall {{ display: grid; grid-template-columns: 9em 7.5em 1fr; column-gap: 10px; align-items: center; margin: 8px 0; }}
.wall .note {{ grid-column: 3; }}
.wall .share {{ text-align: right; font-variant-numeric: tabular-nums; }}
.wall.binds .bar i {{ background: var(--warn); }}
.key {{ display: flex; flex-wrap: wrap; gap: 2px 16px; font-size: 13px; margin-bottom: 8px; }}
.key i {{
  display: inline-block; width: 12px; height: 12px; margin-right: 6px; vertical-align: -1px; border-radius: 2px;
}}
.plot {{ position: relative; height: 230px; margin: 22px 14px 28px 56px; }}
.plot svg {{ display: block; width: 100%; height: 100%; overflow: visible; }}
.plot svg * {{ vector-effect: non-scaling-stroke; fill: none; }}
.plot span {{
  position: absolute; font-size: 12px; line-height: 1; white-space: nowrap;
  color: var(--muted); font-variant-numeric: tabular-nums;
}}
.plot .level {{ right: 100%; margin: -6px 8px 0 0; }}
.plot .step {{ top: 100%; transform: translateX(-50%); margin-top: 8px; }}
.plot .number {{ bottom: 100%; transform: translateX(-50%); margin-bottom: 5px; color: var(--warn); font-weight: 600; }}
.grid {{ stroke: var(--line); }}
.plot .mark {{ stroke: var(--warn); stroke-dasharray: 4 3; background: none; }}
.plot .loss, .plot .norm, .plot .held-out {{ stroke-width: 1.8px; stroke-linejoin: round; }}
.plot .dots {{ stroke-width: 6px; stroke-linecap: round; }}
.plot .loss, .plot .norm {{ stroke: var(--forward); }}
.plot .held-out {{ stroke: var(--backward); }}
.key .loss, .key .norm {{ background: var(--forward); }}
.key .held-out {{ background: var(--backward); }}
.key .mark {{ background: var(--warn); padding: 0; width: 3px; border-radius: 0; }}
.lane {{ display: grid; grid-template-columns: 255px 1fr; column-gap: 12px; align-items: center; margin: 3px 0; }}
.lane .label {{ font-size: 13px; line-height: 1.3; }}
.lane svg {{ display: block; width: 100%; height: 26px; background: var(--soft); }}
.axis {{
  display: flex; justify-content: space-between; margin-left: calc(255px + 12px);
  font-size: 12px; color: var(--muted);
}}
.forward {{ fill: var(--forward); }} .backward, .input {{ fill: var(--backward); }} .weight {{ fill: var(--weight); }}
.optimizer {{ fill: var(--optimizer); }} .reduce {{ fill: var(--reduce); }} .receive {{ fill: var(--receive); }}
.other {{ fill: var(--other); }} .odd {{ fill-opacity: .68; }}
.key .forward {{ background: var(--forward); }} .key .backward, .key .input {{ background: var(--backward); }}
.key .weight {{ background: var(--weight); }} .key .optimizer {{ background: var(--optimizer); }}
.key .reduce {{ background: var(--reduce); }} .key .receive {{ background: var(--receive); }}
.key .other {{ background: var(--other); }}
@media screen and (max-width: 760px) {{
  main {{ padding: 12px 14px 40px; }}
  h2 small {{ display: block; margin: 2px 0 0; }}
  thead {{ display: none; }}
  table, tbody, tr, td {{ display: block; width: 100%; }}
  tr {{ padding: 8px 0; border-bottom: 1px solid var(--line); }}
  td {{ display: grid; grid-template-columns: 8.5em 1fr; gap: 10px; border: 0; padding: 2px 0; }}
  td::before {{ content: attr(data-label); color: var(--muted); font-size: 13px; line-height: 1.7; }}
  td.right {{ text-align: left; white-space: normal; }}
  td:first-child {{ font-weight: 600; }}
  .wall {{ grid-template-columns: 9em 1fr; }}
  .wall .bar, .wall .note {{ grid-column: 1 / -1; }}
  .lane {{ display: block; margin: 10px 0; }}
  .lanes .axis {{ margin-left: 0; }}
}}
@media print {{
  body {{ font-size: 11px; }}
  main {{ max-width: none; padding: 0; }}
  * {{ print-color-adjust: exact; -webkit-print-color-adjust: exact; }}
  h1 {{ font-size: 20px; }}
  h2 {{ font-size: 14px; }}
  h2, .key {{ break-after: avoid; }}
  .caption {{ break-before: avoid; }}
  h2 small, th, pre, .note, .tag, .caption, .key, .axis, .lane .label, .plot span {{ font-size: 10px; }}
  section {{ margin-top: 22px; }}
  tr, .wall, .lane, .plot {{ break-inside: avoid; }}
  .plot {{ height: 170px; }}
  details::details-content {{ content-visibility: visible; block-size: auto; display: block; }}
}}
"""
