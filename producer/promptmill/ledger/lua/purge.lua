-- purge: ends what is queued in a lane with an error, in parts, as the broker does nothing else meanwhile. What workers
-- hold is left to them. With json = '' it only counts. Left where they are, and skipped by the next call: what was
-- entered after `entered_by`, and plain calls whose answer waits for a worker to hand it to Celery.
-- Returns how many prompts, how many records to skip in the next call, and whether that one is needed.
local RECORDS, PROMPTS = 100, 1000

local lane, skip, entered_by, json = unpack(ARGV, 3, 6)
write_even_when_full()
local now = clock()
skip = tonumber(skip)
local prompts, looked = 0, 0
local ids = redis.call('ZRANGE', key('lane:' .. lane), skip, skip + RECORDS - 1)
for _, id in ipairs(ids) do
  if prompts >= PROMPTS then break end
  looked = looked + 1
  local open, entered, keep = unpack(redis.call('HMGET', key('record:' .. id), 'open', 'entered', 'keep'))
  if not open then
    redis.call('ZREM', key('lane:' .. lane), id)
  elseif tonumber(entered) > tonumber(entered_by) or keep and is_complete(id) then
    skip = skip + 1
  else
    prompts = prompts + #unanswered(id, split(open))
    if json == '' then skip = skip + 1 else end_open(id, json, now) end
  end
end
return {prompts, skip, (looked < #ids or #ids == RECORDS) and 1 or 0}
