import json, shutil, os, traceback
from pathlib import Path
from treadle.window.runs import Runs
from treadle.window.session import News
from starlette.responses import JSONResponse
base=Path("/tmp/review_s5/runs/maze")
def fresh(n):
    p=Path("/tmp/review_s5/var")/n
    shutil.rmtree(p,ignore_errors=True); shutil.copytree(base,p/"maze"); return p
def attempt(name,f):
    try: r=f(); print("OK  ",name, str(r)[:300])
    except BaseException as e: print("FAIL",name, type(e).__name__, str(e)[:200])
# 1 stray checkpoint name
p=fresh("stray"); (p/"maze/checkpoints/step-best.safetensors").write_bytes(b"x")
attempt("news stray",lambda: News(p/"maze").look())
# 2 config values
for k,v in [("total_timesteps",0),("total_timesteps",-5),("seeds",0),("seeds",-1),("seeds",10**8),("total_timesteps",10**400)]:
    p=fresh("cfg"); info=json.loads((p/"maze/run.json").read_text()); info["config"][k]=v; (p/"maze/run.json").write_text(json.dumps(info))
    attempt(f"listed {k}={str(v)[:10]}",lambda: JSONResponse(Runs(p).listed()).body[:100])
    attempt(f"news {k}={str(v)[:10]}",lambda: len(News(p/"maze").look().out))
# NaN
for k,v in [("wall_seconds",float("nan")),("step",float("inf")),("status","\ud800")]:
    p=fresh("nan"); info=json.loads((p/"maze/run.json").read_text()); info[k]=v; (p/"maze/run.json").write_text(json.dumps(info))
    attempt(f"listed {k}={v!r}",lambda: JSONResponse(Runs(p).listed()).body[:100])
    attempt(f"news {k}={v!r}",lambda: len(News(p/"maze").look().out))
# name
p=fresh("name"); os.rename(str(p/"maze").encode(), str(p).encode()+b"/l\xe4uf")
attempt("latin-1 name", lambda: JSONResponse(Runs(p).listed()).body[:100])
# metrics overflow
p=fresh("inf"); (p/"maze/metrics.jsonl").write_text("".join(json.dumps({"seed":0,"step":s,"episode_return":1e308,"time":0})+"\n" for s in (1,1,1)))
attempt("1e308", lambda: JSONResponse(Runs(p).listed()).body[:100])
def nn():
    n=News(p/"maze"); return n.look()
attempt("news 1e308", nn)
p=fresh("neg"); (p/"maze/metrics.jsonl").write_text('{"seed":0,"step":1,"episode_return":5,"episodes":2}\n{"seed":0,"step":1,"episode_return":1,"episodes":-2}\n')
attempt("neg", lambda: JSONResponse(Runs(p).listed()).body[:100])
from treadle.window.server import listen, hosts_of
for h in ["","a"*70,"127.1","127.0.0.1.","LOCALHOST","\udcff","::1","localhost."]:
    def f():
        s=listen(h,0); n=s.getsockname(); s.close(); return n, hosts_of(h,1)
    attempt("host "+ascii(h)[:20], f)
