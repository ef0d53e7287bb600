-- finish: answers are taken from anybody (any right answer is good), errors from a holder of the lease only, so
-- that a worker that wakes from a long sleep can't overwrite an answer with its failure.
-- With last = 1 the worker has sent all that it holds; what the broker still misses of it is returned, and the
-- worker sends those again (a broker that lost its last second of writes).
local id, token, last = unpack(ARGV, 3, 5)
local record = key('record:' .. id)
write_even_when_full()
if redis.call('EXISTS', record) == 0 then return '' end

local holds = redis.call('HEXISTS', record, 'claim:' .. token) == 1
local accepted = {}
for i = 6, #ARGV, 3 do
  local position, kind, json = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  if kind == 'answer' or holds then
    accepted[#accepted + 1] = position
    accepted[#accepted + 1] = json
  end
end
answer(id, accepted)

if is_complete(id) then
  -- A kept record stays leased until Celery has stored its result, see drop.lua.
  if redis.call('HGET', record, 'keep') ~= '1' then drop(id) end
  return ''
end
if last ~= '1' or not holds then return '' end
local missing = unanswered(id, split(redis.call('HGET', record, 'claim:' .. token)))
if #missing == 0 then
  end_claim(id, token)
end
return join(missing)
